"""What stands behind `deployments/vlm.py`: one model's graph in the caller's own process, behind blocking calls."""
