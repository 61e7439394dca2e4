"""Speed side by side with peers: same model, same machine, same run."""
