"""python -m gptoss_export"""

from .cli import main

main(prog_name="gptoss-export")
