"""What inference needs around a model: batches of texts, one loop over them, the pipeline for text generation."""
