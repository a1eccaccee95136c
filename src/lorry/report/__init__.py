"""What a person reads after a run: report.html, the model card, the table at the end."""
