"""A GPU lab on JupyterHub. Import the submodule you need; this package imports nothing."""
