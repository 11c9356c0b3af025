"""The checker sees each kind of damage: what can't fail proves nothing."""

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from tests.chaos.load import Load, Mine
from tests.chaos.test_dataset_checker import BUGS as DATASET_BUGS
from tests.chaos.test_hook_checker import BUGS as HOOK_BUGS
from tests.chaos.test_money_checker import BUGS as MONEY_BUGS
from tests.kit import checker
from tests.kit import run_checker as runs
from tests.kit.checker import check, summary
from tests.kit.evidence import Evidence, Fact, Lease, Stored
from tests.kit.platform import Platform, client
from tests.kit.record import Op
from tests.kit.trained import EXPORT, INGEST, NEXT, PROJECT, RUN, lines, trained

pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")

Bug = Callable[[Evidence], None]


@pytest.fixture(scope="module")
async def sound(whole: Platform) -> Evidence:
    """What a short and quiet run of everything that people do leaves behind."""
    async with client() as http:
        load = Load(whole.urls, http, seed=7)
        mine: list[Mine] = []
        for deed in (load.create, load.create_twice, load.create, load.misuse):
            await deed(load.rng, mine)
        first, second, third = mine[:3]
        for project in (first, second, third):
            await load.upload(load.rng, [project])
        for _ in range(2):
            await load.upload_data_set(load.rng, [])
        assert await whole.rest(30) == ""
        for deed in (load.rename, load.rename_seen, load.rename_stale, load.delete_example, load.cancel):
            await deed(load.rng, [first])
        await load.delete_file(load.rng, [second])
        await load.delete_twice(load.rng, [third])
        await load.delete_data_set(load.rng, [])
    assert await whole.rest(30) == ""
    await whole.sweep()
    return await whole.collect(load.ops)


def test_a_sound_run_has_nothing_against_it(sound: Evidence):
    assert summary(check(sound)) == ""
    assert {fact.type for fact in sound.facts} >= {
        "project.updated",
        "project.deleted",
        "project.file_deleted",
        "example.deleted",
        "preparation.completed",
        "dataset.deleted",
    }
    assert {op.status for op in sound.ops} >= {200, 201, 204, 404, 412, 422}


# Planted bugs, each with the invariant that must see it. What a bug does to other invariants is not looked at.


def a_command_that_is_lost(evidence: Evidence) -> None:
    evidence.facts.remove(first(evidence, "project.updated"))


def a_command_that_is_done_twice(evidence: Evidence) -> None:
    fact = first(evidence, "project.updated")
    append(evidence, replace(fact, id="again"))


def a_refused_command_that_is_done(evidence: Evidence) -> None:
    accepted(evidence, "rename").status = 409


def an_unanswered_command_that_is_done_twice(evidence: Evidence) -> None:
    accepted(evidence, "rename").status = 0
    a_command_that_is_done_twice(evidence)


def an_unexpected_error(evidence: Evidence) -> None:
    evidence.ops[0].odd.append("500 Internal Server Error")


def another_answer_to_the_same_key(evidence: Evidence) -> None:
    op = accepted(evidence, "create")
    evidence.ops.append(replace(op, answer={**op.answer, "id": "another"}))


def two_deletes_that_both_succeed(evidence: Evidence) -> None:
    evidence.ops.append(replace(accepted(evidence, "delete")))


def a_wrong_etag(evidence: Evidence) -> None:
    accepted(evidence, "rename").version += 1


def an_if_match_that_is_ignored(evidence: Evidence) -> None:
    accepted(evidence, "rename").if_match = 1


def a_404_about_what_is_there(evidence: Evidence) -> None:
    op = accepted(evidence, "rename")
    evidence.ops.append(replace(op, kind="read", status=404))


def a_fact_that_nobody_asked_for(evidence: Evidence) -> None:
    evidence.ops.remove(accepted(evidence, "rename"))


def a_fact_without_its_copy(evidence: Evidence) -> None:
    del evidence.copied[3]


def a_copy_that_differs(evidence: Evidence) -> None:
    evidence.copied[3] = replace(evidence.copied[3], body=evidence.copied[3].body + b" ")


def a_copy_that_is_filed_wrongly(evidence: Evidence) -> None:
    evidence.copied[3] = replace(evidence.copied[3], aggregate="local/other")


def a_parked_fact(evidence: Evidence) -> None:
    evidence.parked.append("3: ValueError")


def views_that_are_behind(evidence: Evidence) -> None:
    evidence.checkpoint -= 1


def a_row_that_is_changed(evidence: Evidence) -> None:
    id, row = next(iter(evidence.live["projects"].items()))
    evidence.live["projects"][id] = row.replace("local", "lokal")


def a_row_that_is_missing(evidence: Evidence) -> None:
    evidence.live["examples"].popitem()


def a_row_too_many(evidence: Evidence) -> None:
    evidence.live["example_edits"]["x"] = "(x)"


def views_that_cannot_be_built_again(evidence: Evidence) -> None:
    evidence.rebuild_failed = "an object is damaged"


def a_view_that_folds_wrongly(evidence: Evidence) -> None:
    """Live and rebuilt agree: only the second fold can tell."""
    evidence.rows["projects"][0]["name"] = "another"


def a_job_in_the_wrong_status(evidence: Evidence) -> None:
    evidence.rows["jobs"][0]["status"] = "running"


def a_file_that_should_not_be_there(evidence: Evidence) -> None:
    evidence.rows["files"].append({**evidence.rows["files"][0], "id": "another"})


def a_data_set_that_is_not_listed(evidence: Evidence) -> None:
    evidence.rows["datasets"].pop()


def a_model_that_nobody_made(evidence: Evidence) -> None:
    evidence.rows["models"].append({"id": "nowhere"})


def a_job_without_an_end(evidence: Evidence) -> None:
    evidence.facts.remove(first(evidence, "preparation.completed"))


def a_job_with_two_ends(evidence: Evidence) -> None:
    append(evidence, replace(first(evidence, "preparation.completed"), type="preparation.failed"))


def a_stage_that_goes_on_after_its_end(evidence: Evidence) -> None:
    append(evidence, first(evidence, "preparation.produced"))


def a_stage_out_of_its_turn(evidence: Evidence) -> None:
    swap(evidence, fact := first(evidence, "preparation.started"), replace(fact, type="export.started"))


def an_end_that_nobody_wished(evidence: Evidence) -> None:
    swap(evidence, fact := first(evidence, "preparation.completed"), replace(fact, type="preparation.cancelled"))


def a_cancel_that_is_forgotten(evidence: Evidence) -> None:
    evidence.ops.append(Op("cancel", first(evidence, "job.created").data["job_id"], "POST", "/jobs", status=200))


def a_project_that_is_too_full(evidence: Evidence) -> None:
    evidence.limit_mb = 0


def a_fact_about_a_deleted_project(evidence: Evidence) -> None:
    append(evidence, replace(first(evidence, "project.updated"), data={"project_id": first(evidence, "project.deleted").data["project_id"]}))


def a_fact_before_its_project(evidence: Evidence) -> None:
    evidence.facts.insert(0, first(evidence, "project.updated"))


def a_project_that_is_made_twice(evidence: Evidence) -> None:
    append(evidence, first(evidence, "project.created"))


def a_file_that_is_deleted_twice(evidence: Evidence) -> None:
    append(evidence, first(evidence, "project.file_deleted"))


def a_file_without_its_job(evidence: Evidence) -> None:
    evidence.facts.remove(first(evidence, "job.created"))


def a_job_without_its_file(evidence: Evidence) -> None:
    append(evidence, replace(first(evidence, "job.created"), data={**first(evidence, "job.created").data, "job_id": "another"}))


def a_job_outside_of_the_batch(evidence: Evidence) -> None:
    swap(evidence, fact := first(evidence, "job.created"), replace(fact, correlation="another"))


def a_job_that_reads_another_file(evidence: Evidence) -> None:
    swap(evidence, fact := first(evidence, "job.created"), replace(fact, data={**fact.data, "inputs": {"file": {}}}))


def an_object_that_is_missing(evidence: Evidence) -> None:
    del evidence.objects[part(evidence).data["content"]["key"]]


def an_object_that_is_damaged(evidence: Evidence) -> None:
    key = part(evidence).data["content"]["key"]
    content = evidence.objects[key].content[:-1] + b" "
    evidence.objects[key] = Stored(key, sha256(content).hexdigest(), content)


def a_part_that_is_missing(evidence: Evidence) -> None:
    evidence.facts.remove(part(evidence))


def a_part_with_fewer_rows(evidence: Evidence) -> None:
    swap(evidence, fact := part(evidence), replace(fact, data={**fact.data, "rows": fact.data["rows"] - 1}))


def an_example_that_is_missing(evidence: Evidence) -> None:
    evidence.rows["examples"].pop()


def an_example_that_is_there_twice(evidence: Evidence) -> None:
    evidence.rows["examples"].append(evidence.rows["examples"][-1])


def a_source_with_more_rows_than_its_parts(evidence: Evidence) -> None:
    key = first(evidence, "project.files_added").data["files"][0]["key"]
    evidence.objects[key] = replace(evidence.objects[key], content=evidence.objects[key].content + b"\n{}")


def a_part_that_waits_for_ever(evidence: Evidence) -> None:
    evidence.rows["parts"][0]["state"] = "pending"


def an_example_of_no_file(evidence: Evidence) -> None:
    evidence.rows["examples"][0]["file_id"] = "another"


def a_gap_in_the_log(evidence: Evidence) -> None:
    del evidence.facts[4]


def a_log_that_lost_its_end(evidence: Evidence) -> None:
    evidence.facts.pop()


def an_event_id_that_is_there_twice(evidence: Evidence) -> None:
    evidence.facts[5] = replace(evidence.facts[5], id=evidence.facts[4].id)


def a_fact_under_another_subject(evidence: Evidence) -> None:
    swap(evidence, fact := first(evidence, "project.updated"), replace(fact, subject=fact.subject.replace("updated", "created")))


def an_object_that_belongs_to_nothing(evidence: Evidence) -> None:
    evidence.objects["local/x/y"] = Stored("local/x/y", "", b"")


def a_temporary_file(evidence: Evidence) -> None:
    evidence.litter.append("s3/trainyard/x.partial")


def a_lease_of_the_dead(evidence: Evidence) -> None:
    evidence.leases.append(Lease("projector", "host-1-abc", valid=True))


def a_consumer_that_nobody_reads(evidence: Evidence) -> None:
    follower = next(consumer for consumer in evidence.consumers if not consumer["config"].get("durable_name"))
    evidence.consumers.append(follower)


def a_reaction_that_is_not_done(evidence: Evidence) -> None:
    next(consumer for consumer in evidence.consumers if consumer["config"].get("durable_name"))["num_ack_pending"] = 1


BUGS: dict[checker.Invariant, list[Bug]] = {
    checker.answers_are_true: [
        a_command_that_is_lost,
        a_command_that_is_done_twice,
        a_refused_command_that_is_done,
        an_unanswered_command_that_is_done_twice,
        an_unexpected_error,
    ],
    checker.repeats_get_the_same_answer: [another_answer_to_the_same_key, two_deletes_that_both_succeed],
    checker.versions_are_true: [a_wrong_etag, an_if_match_that_is_ignored],
    checker.missing_things_were_deleted: [a_404_about_what_is_there],
    checker.nothing_comes_from_nowhere: [a_fact_that_nobody_asked_for],
    checker.the_copy_is_the_log: [a_fact_without_its_copy, a_copy_that_differs, a_copy_that_is_filed_wrongly, a_parked_fact, views_that_are_behind],
    checker.views_can_be_built_again: [a_row_that_is_changed, a_row_that_is_missing, a_row_too_many, views_that_cannot_be_built_again],
    checker.views_tell_what_happened: [
        a_view_that_folds_wrongly,
        a_job_in_the_wrong_status,
        a_file_that_should_not_be_there,
        a_data_set_that_is_not_listed,
        a_model_that_nobody_made,
    ],
    checker.jobs_end_once: [a_job_without_an_end, a_job_with_two_ends, a_stage_that_goes_on_after_its_end, a_stage_out_of_its_turn],
    checker.cancels_are_kept: [an_end_that_nobody_wished, a_cancel_that_is_forgotten],
    checker.projects_stay_within_their_limit: [a_project_that_is_too_full],
    checker.nothing_happens_to_what_is_gone: [
        a_fact_about_a_deleted_project,
        a_fact_before_its_project,
        a_project_that_is_made_twice,
        a_file_that_is_deleted_twice,
    ],
    checker.files_and_jobs_come_together: [a_file_without_its_job, a_job_without_its_file, a_job_outside_of_the_batch, a_job_that_reads_another_file],
    checker.objects_are_there: [an_object_that_is_missing, an_object_that_is_damaged],
    checker.parts_are_whole: [
        a_part_that_is_missing,
        a_part_with_fewer_rows,
        an_example_that_is_missing,
        an_example_that_is_there_twice,
        a_source_with_more_rows_than_its_parts,
    ],
    checker.examples_belong_to_files: [a_part_that_waits_for_ever, an_example_of_no_file],
    checker.the_log_is_one: [a_gap_in_the_log, a_log_that_lost_its_end, an_event_id_that_is_there_twice, a_fact_under_another_subject],
    checker.nothing_is_left_over: [
        an_object_that_belongs_to_nothing,
        a_temporary_file,
        a_lease_of_the_dead,
        a_consumer_that_nobody_reads,
        a_reaction_that_is_not_done,
    ],
}


@pytest.mark.parametrize(("invariant", "bug"), [pytest.param(invariant, bug, id=bug.__name__) for invariant, bugs in BUGS.items() for bug in bugs])
def test_a_planted_bug_is_seen(sound: Evidence, invariant: checker.Invariant, bug: Bug):
    evidence = copy.deepcopy(sound)

    bug(evidence)

    assert list(invariant(evidence))


# The same for a training run and its export


def test_a_sound_run_of_training_has_nothing_against_it():
    evidence = trained()

    assert [what for invariant in RUN_BUGS for what in invariant(evidence)] == []


def a_run_beside_another(evidence: Evidence) -> None:
    evidence.facts.remove(said(evidence, "training.completed"))


def a_snapshot_without_a_row(evidence: Evidence) -> None:
    rewrite(evidence, prepared(evidence), "snapshot", drop=1)


def a_snapshot_with_a_deleted_example(evidence: Evidence) -> None:
    evidence.facts.remove(first(evidence, "example.deleted"))


def a_snapshot_of_another_position(evidence: Evidence) -> None:
    prepared(evidence).data["position"] -= 1


def a_snapshot_with_other_splits(evidence: Evidence) -> None:
    prepared(evidence).data["splits"] = {"train": 5}


def a_run_without_its_snapshot(evidence: Evidence) -> None:
    del prepared(evidence).data["snapshot"]


def an_attempt_that_is_skipped(evidence: Evidence) -> None:
    evidence.facts.remove(said(evidence, "training.started", attempt=2))


def an_attempt_that_two_workers_start(evidence: Evidence) -> None:
    said(evidence, "training.started", attempt=3).data["attempt"] = 2


def a_zombie_that_goes_on(evidence: Evidence) -> None:
    insert(evidence, copy.deepcopy(said(evidence, "training.progress", step=3)), before=said(evidence, "training.completed"))


def an_end_by_a_zombie(evidence: Evidence) -> None:
    said(evidence, "training.completed").data["attempt"] = 2


def an_attempt_that_goes_on_after_it_was_given_up(evidence: Evidence) -> None:
    insert(evidence, said(evidence, "training.progress", step=3), before=said(evidence, "training.started", attempt=2))


def an_attempt_too_many(evidence: Evidence) -> None:
    evidence.facts = [fact for fact in evidence.facts if fact.type != "training.checkpointed"]
    end = said(evidence, "training.completed")
    insert(evidence, replace(said(evidence, "training.started", attempt=3), data={"job_id": RUN, "attempt": 4}), before=end)
    end.data["attempt"] = 4


def a_run_that_completes_before_it_starts(evidence: Evidence) -> None:
    evidence.facts = [fact for fact in evidence.facts if fact.type != "training.started"]


def an_attempt_that_starts_all_over(evidence: Evidence) -> None:
    said(evidence, "training.started", attempt=2).data["resumed_from"] = 0


def an_attempt_that_skips_steps(evidence: Evidence) -> None:
    said(evidence, "training.started", attempt=2).data["resumed_from"] = 3


def a_checkpoint_that_lies_before_another(evidence: Evidence) -> None:
    said(evidence, "training.checkpointed", attempt=2).data["step"] = 2


def a_word_about_a_step_of_the_attempt_before(evidence: Evidence) -> None:
    said(evidence, "training.progress", step=5).data["step"] = 3


def a_step_that_is_counted_twice(evidence: Evidence) -> None:
    rewrite(evidence, said(evidence, "training.completed"), "steps", double=2)


def a_step_that_is_missing(evidence: Evidence) -> None:
    rewrite(evidence, said(evidence, "training.completed"), "steps", drop=2)


def a_last_step_that_is_missing(evidence: Evidence) -> None:
    rewrite(evidence, said(evidence, "training.completed"), "steps", drop=4)


def a_step_of_an_attempt_that_was_lost(evidence: Evidence) -> None:
    rewrite(evidence, said(evidence, "training.checkpointed", attempt=2), "steps", change=(2, {"attempt": 1}))


def a_loss_that_changes_after_its_checkpoint(evidence: Evidence) -> None:
    rewrite(evidence, said(evidence, "training.completed"), "steps", change=(1, {"train_loss": 0.1}))


def a_loss_that_was_told_differently(evidence: Evidence) -> None:
    said(evidence, "training.progress", step=5).data["metrics"]["train_loss"] = 0.1


def a_last_step_that_nobody_tells(evidence: Evidence) -> None:
    evidence.facts.remove(said(evidence, "training.progress", step=5))


def a_step_beyond_the_last(evidence: Evidence) -> None:
    said(evidence, "training.progress", step=5).data["total_steps"] = 4


def steps_that_fall(evidence: Evidence) -> None:
    said(evidence, "training.progress", step=1).data["step"] = 4


def a_checkpoint_where_another_attempt_writes(evidence: Evidence) -> None:
    fact = said(evidence, "training.checkpointed", attempt=2)
    fact.data["state"] = said(evidence, "training.checkpointed", attempt=1).data["state"]


def an_adapter_where_everyone_writes(evidence: Evidence) -> None:
    claim = said(evidence, "training.completed").data["artifacts"]["adapter_config.json"]
    claim["key"] = claim["key"].replace("/3/", "/")


def an_export_without_its_report(evidence: Evidence) -> None:
    files(evidence).pop()


def an_export_with_a_wrong_checksum(evidence: Evidence) -> None:
    files(evidence)[0]["crc32"] += 1


def an_export_with_a_name_twice(evidence: Evidence) -> None:
    files(evidence).append(files(evidence)[0])


def an_export_of_another_adapter(evidence: Evidence) -> None:
    files(evidence)[0]["content"] = files(evidence)[1]["content"]


def an_export_of_a_run_that_did_not_complete(evidence: Evidence) -> None:
    created(evidence, EXPORT).data["inputs"]["training_job_id"] = NEXT


def an_export_of_another_project(evidence: Evidence) -> None:
    created(evidence, RUN).data["project_id"] = "another"


def a_checkpoint_that_is_missing(evidence: Evidence) -> None:
    del evidence.objects[said(evidence, "training.checkpointed", attempt=1).data["state"]["key"]]


def a_snapshot_that_is_missing(evidence: Evidence) -> None:
    del evidence.objects[prepared(evidence).data["snapshot"]["key"]]


def an_exported_file_that_is_damaged(evidence: Evidence) -> None:
    key = files(evidence)[0]["content"]["key"]
    evidence.objects[key] = Stored(key, "", b"")


def a_run_that_fails_after_it_completed(evidence: Evidence) -> None:
    append(evidence, replace(said(evidence, "training.completed"), type="training.failed"))


def a_run_that_starts_without_its_data(evidence: Evidence) -> None:
    evidence.facts.remove(prepared(evidence))


def a_run_that_its_project_does_not_know(evidence: Evidence) -> None:
    swap(evidence, fact := said(evidence, "project.run_started"), replace(fact, type="project.updated"))


def an_export_that_is_announced_as_something_else(evidence: Evidence) -> None:
    said(evidence, "project.work_started").data["kind"] = "train"


def a_start_that_is_done_twice(evidence: Evidence) -> None:
    evidence.ops.append(Op("train", "1", "POST", "/train/start", status=202, answer={"job_id": RUN, "run_id": "r"}))  # both runs have seed 1


def an_export_that_is_promised_only(evidence: Evidence) -> None:
    evidence.ops.append(Op("export", "", "POST", "/export", status=202, answer={"job_id": "another"}))


def two_answers_to_the_same_start(evidence: Evidence) -> None:
    evidence.ops += [Op("train", "1", "POST", "/train/start", status=202, answer={"job_id": job, "run_id": "r"}) for job in (RUN, NEXT)]


def a_lease_of_a_run_that_has_ended(evidence: Evidence) -> None:
    evidence.work.append(f"work.gpu.local.{RUN}")


def a_lease_that_somebody_still_holds(evidence: Evidence) -> None:
    evidence.workers[0]["num_ack_pending"] = 1


def a_child_that_trains_on(evidence: Evidence) -> None:
    evidence.trainers.append("4711 python")


def a_checkpoint_of_a_zombie(evidence: Evidence) -> None:
    evidence.objects[f"local/{RUN}/1/x"] = Stored(f"local/{RUN}/1/x", "", b"")


def an_export_of_a_deleted_project(evidence: Evidence) -> None:
    append(evidence, replace(first(evidence, "project.created"), type="project.deleted", data={"project_id": PROJECT, "job_ids": [INGEST, RUN, NEXT]}))
    evidence.objects = {key: stored for key, stored in evidence.objects.items() if f"/{EXPORT}/" in key}


RUN_BUGS: dict[checker.Invariant, list[Bug]] = {
    runs.one_run_at_a_time: [a_run_beside_another],
    runs.snapshots_are_the_rows: [
        a_snapshot_without_a_row,
        a_snapshot_with_a_deleted_example,
        a_snapshot_of_another_position,
        a_snapshot_with_other_splits,
        a_run_without_its_snapshot,
    ],
    runs.attempts_follow_each_other: [
        an_attempt_that_is_skipped,
        an_attempt_that_two_workers_start,
        a_zombie_that_goes_on,
        an_end_by_a_zombie,
        an_attempt_that_goes_on_after_it_was_given_up,
        an_attempt_too_many,
        a_run_that_completes_before_it_starts,
    ],
    runs.attempts_go_on_from_checkpoints: [
        an_attempt_that_starts_all_over,
        an_attempt_that_skips_steps,
        a_checkpoint_that_lies_before_another,
        a_word_about_a_step_of_the_attempt_before,
    ],
    runs.steps_join: [
        a_step_that_is_counted_twice,
        a_step_that_is_missing,
        a_last_step_that_is_missing,
        a_step_of_an_attempt_that_was_lost,
        a_loss_that_changes_after_its_checkpoint,
    ],
    runs.progress_is_of_the_steps: [a_loss_that_was_told_differently, a_last_step_that_nobody_tells, a_step_beyond_the_last, steps_that_fall],
    runs.objects_lie_where_nobody_else_writes: [a_checkpoint_where_another_attempt_writes, an_adapter_where_everyone_writes],
    runs.exports_are_whole: [
        an_export_without_its_report,
        an_export_with_a_wrong_checksum,
        an_export_with_a_name_twice,
        an_export_of_another_adapter,
        an_export_of_a_run_that_did_not_complete,
        an_export_of_another_project,
    ],
    checker.objects_are_there: [a_checkpoint_that_is_missing, a_snapshot_that_is_missing, an_exported_file_that_is_damaged],
    checker.jobs_end_once: [a_run_that_fails_after_it_completed, a_run_that_starts_without_its_data],
    checker.files_and_jobs_come_together: [a_run_that_its_project_does_not_know, an_export_that_is_announced_as_something_else],
    checker.answers_are_true: [a_start_that_is_done_twice, an_export_that_is_promised_only],
    checker.repeats_get_the_same_answer: [two_answers_to_the_same_start],
    checker.nothing_is_left_over: [
        a_lease_of_a_run_that_has_ended,
        a_lease_that_somebody_still_holds,
        a_child_that_trains_on,
        a_checkpoint_of_a_zombie,
        an_export_of_a_deleted_project,
    ],
}


@pytest.mark.parametrize(("invariant", "bug"), [pytest.param(invariant, bug, id=bug.__name__) for invariant, bugs in RUN_BUGS.items() for bug in bugs])
def test_a_bug_planted_in_a_run_is_seen(invariant: checker.Invariant, bug: Bug):
    evidence = trained()

    bug(evidence)

    assert list(invariant(evidence))


def test_every_invariant_can_fail():
    assert set(BUGS) | set(RUN_BUGS) | set(DATASET_BUGS) | set(MONEY_BUGS) | set(HOOK_BUGS) == set(checker.INVARIANTS)


# Damage to the real things: the evidence shows it too


@asynccontextmanager
async def a_changed_view(whole: Platform) -> AsyncIterator[None]:
    async with whole.database() as session:
        name = await session.fetchval("select name from projects order by id limit 1")
        await session.execute("update projects set name = 'changed' where name = $1", name)
        yield
        await session.execute("update projects set name = $1 where name = 'changed'", name)


@asynccontextmanager
async def a_changed_copy(whole: Platform) -> AsyncIterator[None]:
    async with whole.database() as session:
        body = await session.fetchval("select body from event_log where seq = 2")
        await session.execute("update event_log set body = body || ' '::bytea where seq = 2")
        yield
        await session.execute("update event_log set body = $1 where seq = 2", body)


@asynccontextmanager
async def a_changed_object(whole: Platform) -> AsyncIterator[None]:
    """The part can't be loaded any more either, so that the views can't be built again."""
    async with whole.database() as session:
        key: str = await session.fetchval("select p.key from parts p join jobs j on j.id = p.job_id where j.kind = 'ingest' order by p.id limit 1") or ""
    path = whole.servers.store.root / whole.servers.store.bucket / key
    content = path.read_bytes()
    path.write_bytes(content[:-2] + b"  ")
    yield
    path.write_bytes(content)


@asynccontextmanager
async def a_stray_file(whole: Platform) -> AsyncIterator[None]:
    path = whole.servers.store.root / whole.servers.store.bucket / "local" / "stray.partial"
    path.write_bytes(b"half of")
    yield
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (a_changed_view, {"views_can_be_built_again", "views_tell_what_happened"}),
        (a_changed_copy, {"the_copy_is_the_log"}),
        (a_changed_object, {"objects_are_there", "parts_are_whole", "views_can_be_built_again"}),
        (a_stray_file, {"nothing_is_left_over"}),
    ],
)
async def test_real_damage_is_seen_and_nothing_else(whole: Platform, sound: Evidence, damage: Any, seen: set[str]):
    async with damage(whole):
        await asyncio.sleep(0.2)  # the object store looks at its folder anew
        evidence = await whole.collect(sound.ops)

    assert {violation.invariant for violation in check(evidence)} == seen


# Finding things


def first(evidence: Evidence, type: str) -> Fact:
    return next(fact for fact in evidence.facts if fact.type == type)


def part(evidence: Evidence) -> Fact:
    """One of a file that is still there."""
    there = {row["job_id"] for row in evidence.rows["files"]}
    return next(fact for fact in evidence.facts if fact.type == "preparation.produced" and fact.data["job_id"] in there)


def accepted(evidence: Evidence, kind: str) -> Op:
    return next(op for op in evidence.ops if op.kind == kind and op.accepted)


def append(evidence: Evidence, fact: Fact) -> None:
    evidence.facts.append(replace(fact, seq=evidence.facts[-1].seq + 1))


def swap(evidence: Evidence, old: Fact, new: Fact) -> None:
    evidence.facts[evidence.facts.index(old)] = new


def insert(evidence: Evidence, fact: Fact, *, before: Fact) -> None:
    if fact in evidence.facts:
        evidence.facts.remove(fact)
    evidence.facts.insert(evidence.facts.index(before), fact)


def said(evidence: Evidence, type: str, **about: Any) -> Fact:
    return next(fact for fact in evidence.facts if fact.type == type and about.items() <= fact.data.items())


def created(evidence: Evidence, job: str) -> Fact:
    return said(evidence, "job.created", job_id=job)


def prepared(evidence: Evidence) -> Fact:
    return said(evidence, "preparation.completed", job_id=RUN)


def files(evidence: Evidence) -> list[dict[str, Any]]:
    return said(evidence, "export.completed").data["files"]


def rewrite(evidence: Evidence, fact: Fact, name: str, *, drop: int = -1, double: int = -1, change: tuple[int, dict[str, Any]] = (0, {})) -> None:
    """Another object in the place of one of JSON lines, with all that the claim says of it true."""
    found = evidence.lines(fact.data[name]["key"])
    found[change[0]] |= change[1]
    rows = [row for n, row in enumerate(found) for _ in range(0 if n == drop else 2 if n == double else 1)]
    content = lines(rows)
    digest = sha256(content).hexdigest()
    key = f"{fact.data[name]['key'].rpartition('/')[0]}/{digest}"
    evidence.objects[key] = Stored(key, digest, content)
    fact.data[name] = {"key": key, "sha256": digest, "size": len(content)}
