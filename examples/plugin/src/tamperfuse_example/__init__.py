"""An example of a tamperfuse plug-in: one module for each defense, attack and judge."""
