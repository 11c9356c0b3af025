"""Refusals: one class each, worded once. The rooms under api/ give them a status and a body."""

from typing import Any, ClassVar


class DomainError(Exception):
    """A rule says no. `context` is for programs, `field` for the form that people filled in."""

    code: ClassVar[str]
    message: ClassVar[str]
    field: ClassVar[str] = ""

    def __init__(self, **context: Any) -> None:
        super().__init__(self.message.format(**context))
        self.context = context


class NotFound(DomainError):
    code = "not_found"
    message = "{what} not found"


class Conflicted(DomainError):
    code = "conflict"
    message = "This was changed by others again and again meanwhile. Read it again and retry"


class StaleVersion(DomainError):
    code = "stale_version"
    message = "It was changed meanwhile: version {version} is current, yours is {yours}"


class IdempotencyKeyReused(DomainError):
    code = "idempotency_key_reused"
    message = "This Idempotency-Key was used before with another request"


class ProjectBusy(DomainError):
    code = "project_busy"
    message = "A job of this project is still running: cancel it first, or send ?cancel=true"


class FileBusy(DomainError):
    code = "file_busy"
    message = "A job still reads this file: cancel it first, or send ?cancel=true"


class ProjectFull(DomainError):
    code = "project_full"
    message = "The project's files would exceed {limit_mb} MB in all"


class TrainingAlreadyRunning(DomainError):
    code = "training_already_running"
    message = "A training job is already running for this project"


class ModelNotResolved(DomainError):
    code = "model_not_resolved"
    message = "The project has no base model yet: choose one with POST /projects/{project_id}/model/resolve"


class ModelNotUsable(DomainError):
    code = "model_not_usable"
    message = "'{base_model_id}' can't be fine-tuned: {reason}"


class NoTrainingData(DomainError):
    code = "no_training_data"
    message = "The project has no rows that could be trained on: upload a data set (kind=dataset_upload) with at least one usable row"


class ExamplesStillRead(DomainError):
    code = "examples_still_read"
    message = "There are no examples yet: the project's files are still being read, or its examples made. Try again when that has ended"


class ChunkingAlreadyRunning(DomainError):
    code = "chunking_already_running"
    message = "The documents of this project are being cut into chunks already"


class GenerationAlreadyRunning(DomainError):
    code = "generation_already_running"
    message = "Examples are being generated for this project already"


class NoDocuments(DomainError):
    code = "no_documents"
    message = "The project has no documents: upload some (kind=raw_doc) first"


class NoChunks(DomainError):
    code = "no_chunks"
    message = "The project has no chunks that examples could be made of: cut its documents with POST /projects/{project_id}/chunks/generate first"


class ExampleUnreadable(DomainError):
    code = "example_unreadable"
    message = "The example was refused for its form ({reason}: {why}): it becomes valid when its data is edited"
    field = "is_valid"


class PreviewStays(DomainError):
    code = "preview_stays"
    message = "An example of a preview is never trained on: it can't be moved to another split"
    field = "split"


class ChunksTooLarge(DomainError):
    code = "chunks_too_large"
    message = "Chunks of {size} tokens don't fit into the base model, which takes {context} at once"
    field = "chunk_size_tokens"


class NoSuccessfulRun(DomainError):
    code = "no_successful_run"
    message = "No successful training run to export"


class JobEnded(DomainError):
    code = "job_ended"
    message = "The job has ended already ({status})"


class WebhookInactive(DomainError):
    code = "webhook_inactive"
    message = "The webhook is disabled ({reason}): enable it first, with active=true"


class UnknownEvents(DomainError):
    code = "unknown_events"
    message = "No event of the format {format} is named {patterns}; there are: {names}"
    field = "events"


class DatasetBusy(DomainError):
    code = "dataset_busy"
    message = "A job still uses this data set: stop it first, or send ?cancel=true"


class DatasetNotUsable(DomainError):
    code = "dataset_not_usable"
    message = "Nothing can be fitted to this data set: {reason}"
    field = "dataset_id"


class MonitorUnfit(DomainError):
    code = "monitor_unfit"
    message = "{monitor} is not measured in a {task}: early stopping can go by {measured}"
    field = "early_stopping.monitor"


class LogFull(DomainError):
    code = "storage_full"
    message = "The event log is nearly full: only what is running may end. Ask the operator for room"


class UsernameNotValid(DomainError):
    code = "username_not_valid"
    message = "1 to 64 letters, digits and . _ + - make a username, and it begins with a letter or digit"
    field = "username"


class EmailNotValid(DomainError):
    code = "email_not_valid"
    message = "This is not an e-mail address"
    field = "email"


class WeakPassword(DomainError):
    code = "weak_password"
    message = "The password can't be taken: {why}"
    field = "password"


class UsernameTaken(DomainError):
    code = "username_taken"
    message = "This username is taken"
    field = "username"


class EmailTaken(DomainError):
    code = "email_taken"
    message = "A user with this e-mail address is registered already"
    field = "email"


class PasswordChangedMeanwhile(DomainError):
    code = "password_changed"
    message = "The password was changed meanwhile"


class InsufficientCredits(DomainError):
    code = "insufficient_credits"
    message = "This costs {price} credits and you have {balance}: {missing} are missing"


class TooManyActiveJobs(DomainError):
    code = "too_many_active_jobs"
    message = "{most} of your jobs are queued or running, which is the most: wait for one to end, or stop one"


class TooManyKeys(DomainError):
    code = "too_many_keys"
    message = "{most} keys are the most: revoke one first"


class TooManyBusCredentials(DomainError):
    code = "too_many_bus_credentials"
    message = "{most} credentials for the bus are the most: revoke one first"


class RoleMissing(DomainError):
    code = "role_missing"
    message = "This takes more than your role in the workspace ({role}) allows: ask its owner"


class AlreadyMember(DomainError):
    code = "already_member"
    message = "This user is in the workspace already ({role}): change the role instead"


class OwnerStays(DomainError):
    code = "owner_stays"
    message = "The owner of a workspace always is in it, and as its owner"


class TooManyMembers(DomainError):
    code = "too_many_members"
    message = "{most} members are the most: remove one first"


class TooManyMemberships(DomainError):
    code = "too_many_memberships"
    message = "This user is in {most} workspaces of others already, which are the most"


class UnknownUser(DomainError):
    code = "unknown_user"
    message = "There is no user of this name"
    field = "username"


class TooManyWebhooks(DomainError):
    code = "too_many_webhooks"
    message = "{most} endpoints are the most in a workspace: delete one first"
