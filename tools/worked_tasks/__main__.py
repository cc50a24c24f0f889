"""``python -m tools.worked_tasks OUT.jsonl``."""

from tools.worked_tasks.tasks import main

main()
