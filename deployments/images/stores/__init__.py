"""Image stores behind the ImageStore Protocol, one file each; `open` chooses by configuration."""
