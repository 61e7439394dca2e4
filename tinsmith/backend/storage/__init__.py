"""What outlives a server: an SQLite file and folders of safetensors."""
