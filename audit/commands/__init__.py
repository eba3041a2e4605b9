"""The commands of ``auditorch``, one file each; what they need is imported when they run."""
