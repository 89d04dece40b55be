"""An import over a real file, reporting its progress every 10 %."""

import asyncio
import csv

from asyncjobs import JobDefinition, JobOptions, WorkerOptions
from asyncjobs.demo.services import SYMBOLS


def define(services):
    async def handle(data, job, io):
        rows = list(csv.DictReader(SYMBOLS.open(encoding="utf-8", newline="")))
        for done, row in enumerate(rows, start=1):
            services.catalogue[row["code"]] = row["name"]
            if done % (len(rows) // 10) == 0:
                percent = done * 100 // len(rows)
                await job.update_progress(percent)
                io.to(f"user:{data['user']}").emit("import.progress", {"percent": percent})
                await asyncio.sleep(0.05)
        await job.log(f"imported {len(rows)} rows from {SYMBOLS.name}")
        return {"rows": len(rows)}

    return JobDefinition(
        handle=handle,
        job_options=JobOptions(attempts=1, backoff=None),
        worker_options=WorkerOptions(limiter=None, concurrency=1),
    )
