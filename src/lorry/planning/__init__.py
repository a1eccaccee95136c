"""The `lorry plan` command: what a run would take and cost, before anybody pays for it."""
