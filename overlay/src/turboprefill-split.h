// TurboPrefill in llama_model: how many layers each device gets by default
//
// The slowest stage sets the pace of the pipeline. llama.cpp's default is proportional to free memory, with arbitrary
// rounding: of eight equal devices, one gets 5 of 32 layers and others 4. This split makes the slowest stage as fast as
// possible.

#pragma once

#include <vector>

struct llama_model;
struct llama_model_loader;

// splits: each device's share of the layers; on entry llama.cpp's default, its free memory in bytes.
// Changed if TURBOPREFILL is on, TURBOPREFILL_SPLIT is not off, no split was given, and the devices are of one kind. If
// tensors are kept off the devices of their layers, the log suggests a split that would suit the pipeline.
void llama_turboprefill_split(const llama_model & model, const llama_model_loader & ml, bool given, std::vector<float> & splits);
