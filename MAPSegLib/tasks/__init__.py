"""What each job does; :mod:`MAPSegLib.worker` picks the one to run. Every task is ``run(job, report) -> result``."""
