"""Mail leaves at five a second, however many are added. A refused mail is tried again."""

import asyncio

from asyncjobs import Backoff, JobOptions, Limiter, WorkerOptions

job_options = JobOptions(attempts=5, backoff=Backoff("exponential", 0.5, max_delay=5, jitter=0.2))
worker_options = WorkerOptions(limiter=Limiter(max=5, duration=1))


async def handle(data, job, services):
    services.began("mail")
    if data.get("refused_once") and job.attempts_made == 0:
        raise ConnectionError("451 mailbox busy, try again")
    await asyncio.sleep(0.02)
    services.did("mail")
    return {"to": data["to"]}
