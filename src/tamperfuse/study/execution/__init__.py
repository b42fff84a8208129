"""Running the nodes of a study: one after another, in processes of this machine, or as tasks of a Ray cluster."""
