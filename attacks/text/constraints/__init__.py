"""What an edited text must keep: each constraint compares it with the original."""
