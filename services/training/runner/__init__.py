"""A run's own process: forked for one run, it loads a model, trains, and tells its worker how it goes. Only here and in the trainers torch is imported."""
