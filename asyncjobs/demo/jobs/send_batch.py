"""A batch of which a part fails. The next try does only the rest."""

from asyncjobs import JobOptions, WorkerOptions

job_options = JobOptions(attempts=3, backoff=0.5)
worker_options = WorkerOptions(limiter=None)


async def handle(data, job, services):
    sent = services.done["batch items"]
    left = data["items"][sent:]
    most = 7 if job.attempts_made == 0 else len(left)
    services.did("batch items", min(most, len(left)))
    if most < len(left):
        raise TimeoutError(f"{len(left) - most} of {len(data['items'])} items are left")
    return {"tries": job.attempts_made + 1}
