"""What people do with ERNIE: extraction, classification, embeddings, ranking, prompts."""
