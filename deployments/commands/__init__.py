"""The commands of `retina`, one file each; `deployments/cli.py` puts them together."""
