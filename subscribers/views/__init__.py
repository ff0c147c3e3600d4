"""The reader's doors: joining, leaving by one press, and the preferences behind a mailed link.

No GET changes anything: scanners follow every link in a mail.
"""
