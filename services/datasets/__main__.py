"""`python -m services.datasets`: turns uploaded files into rows."""

from libs.config import Service
from libs.runtime import process
from services.datasets.app import serve

if __name__ == "__main__":
    process.run("datasets", Service, serve)
