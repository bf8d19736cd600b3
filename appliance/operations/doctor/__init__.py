"""The doctor: facts are gathered once (`facts/`), pure checks judge them (`checks/`), reports tell it (`report`)."""
