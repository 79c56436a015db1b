"""The demonstration: a synthetic model, local workers, an interleaved measurement, a picture of both schedules."""
