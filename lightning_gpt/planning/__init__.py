"""What a training costs before it starts: memory, communication and time, for any layout and device."""
