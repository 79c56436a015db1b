"""What handles llama.cpp source trees and machines: fetch, patch, build, examine. Needs no native module."""
