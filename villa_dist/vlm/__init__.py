"""The contrastive region VLM."""
