"""What is measured of a round: accuracy, the generator, the encoders, consensus, and the record of it all."""
