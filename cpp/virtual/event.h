#pragma once

#include "stream.h"

#include "ggml-backend-impl.h"

void virt_event_record(ggml_backend_event_t event, virt_stream & stream);
void virt_event_wait  (ggml_backend_event_t event, virt_stream & stream);

int64_t virt_event_release(); // releases all lost events; returns how many
