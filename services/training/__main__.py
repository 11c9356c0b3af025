"""`python -m services.training`: trains models on snapshots, each run in a process of its own."""

from libs.config import Training
from libs.runtime import process
from services.training.app import serve

if __name__ == "__main__":
    process.run("training", Training, serve)
