// TurboPrefill in llama_model: how many layers each device gets by default
//
// The pipeline runs at the pace of its slowest stage. llama.cpp's default follows free memory and rounds as it comes, which
// gives one of eight equal devices 5 of 32 layers and others 4; this one makes the slowest stage as fast as it can be.

#pragma once

#include <vector>

struct llama_model;
struct llama_model_loader;

// splits: for each device its share of the layers; on entry llama.cpp's default, its free memory in bytes.
// Changed if TURBOPREFILL is on, TURBOPREFILL_SPLIT is not off, none are given, and the devices are of one kind. Where tensors
// are kept off the devices of their layers, the log says which split would suit the pipeline.
void llama_turboprefill_split(const llama_model & model, const llama_model_loader & ml, bool given, std::vector<float> & splits);
