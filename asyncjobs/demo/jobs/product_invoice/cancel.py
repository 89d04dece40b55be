"""Last link: cancelling is idempotent, so its job id is the invoice's."""

from asyncjobs import JobOptions, WorkerOptions

job_options = JobOptions(attempts=3, backoff=1)
worker_options = WorkerOptions(limiter=None)


async def handle(data, services):
    services.did("invoice cancelled")
