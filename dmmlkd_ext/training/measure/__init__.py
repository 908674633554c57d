"""The measurements of a round: accuracy, the generator, the encoders, consensus, and their record."""
