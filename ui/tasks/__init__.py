"""The work of jobs, done in the engine's process: functions that a queue can send there. No Streamlit here."""
