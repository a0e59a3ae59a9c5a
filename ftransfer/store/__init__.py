"""Where files live: the interface (`base`), folders on a disk (`local`) and a store in memory (`memory`)."""
