"""Studies: a file becomes a graph of nodes, the graph becomes a folder of results."""
