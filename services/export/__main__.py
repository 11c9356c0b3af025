"""`python -m services.export`: turns trained models into files that load anywhere."""

from libs.config import Service
from libs.runtime import process
from services.export.app import serve

if __name__ == "__main__":
    process.run("export", Service, serve)
