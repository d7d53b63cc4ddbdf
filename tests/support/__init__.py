"""What several test files share: tiny models and folders, writers of the original formats, programs to start."""
