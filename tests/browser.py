"""The browser that shows pages to tests."""

import shutil

CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The path of an installed Chromium or Chrome; None if there is none."""
