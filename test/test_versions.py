# SPDX-License-Identifier: Apache-2.0
"""One version number: package.xml, setup.py, the changelog."""

from pathlib import Path
import re
import subprocess
import sys
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
VERSION = ElementTree.parse(ROOT / 'package.xml').findtext('version')


def test_setup_py_reports_the_version_of_package_xml():
    said = subprocess.run([sys.executable, 'setup.py', '--version'], cwd=ROOT, check=True,
                          capture_output=True, text=True).stdout.split()
    assert said[-1] == VERSION


def test_the_newest_section_of_the_changelog_is_the_version():
    changelog = (ROOT / 'CHANGELOG.rst').read_text()
    newest = re.search(r'^(\d+\.\d+\.\d+) \(\d{4}-\d{2}-\d{2}\)$', changelog, re.MULTILINE)
    assert newest is not None and newest.group(1) == VERSION
