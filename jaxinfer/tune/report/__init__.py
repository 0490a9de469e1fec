"""What a search found, for people: a table for terminals, a page with pictures, JSON."""

from jaxinfer.tune.report.page import html as html
from jaxinfer.tune.report.terminal import table as table
from jaxinfer.tune.report.terminal import text as text
from jaxinfer.tune.report.write import check_target as check_target
from jaxinfer.tune.report.write import write_report as write_report
