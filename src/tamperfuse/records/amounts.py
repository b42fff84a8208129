"""Times and sizes as messages print them."""


def duration(seconds: float) -> str:
    """Seconds as "42 s", "12 min", "3 h 20 min" or "5 days"."""
    if seconds >= 1e12:
        return "30,000 years or more"
    minutes = round(seconds / 60)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 86_400:,.0f} days"


def gigabytes(size: int) -> str:
    """Bytes as "1.3 GB": 10**9 bytes, as disks are sold."""
    return f"{size / 1e9:,.1f} GB"
