"""From a run's folder to what people read: the page (`page`), its pictures (`figures`), the release gate (`gate`)."""
