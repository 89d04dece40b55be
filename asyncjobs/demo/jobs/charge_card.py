"""A failure that no further try can mend: the handler discards the job, then raises."""

from asyncjobs import WorkerOptions

worker_options = WorkerOptions(limiter=None)


async def handle(data, job, services):
    services.did("charge tried")
    if data["card"] == "expired":
        job.discard()
        raise ValueError("the card has expired")
