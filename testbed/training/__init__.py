"""Training: supervised steps, and rounds of attack and training; what a defence keeps, replays and descends."""
