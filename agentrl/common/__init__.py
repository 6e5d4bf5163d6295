"""What the framework, the environments and the retriever share."""
