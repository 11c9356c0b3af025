"""`python -m services.datasets`: turns uploaded files into rows, documents into chunks and chunks into examples."""

from libs.config import Datasets
from libs.runtime import process
from services.datasets.app import serve

if __name__ == "__main__":
    process.run("datasets", Datasets, serve)
