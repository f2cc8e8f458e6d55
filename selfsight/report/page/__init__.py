"""One offline HTML page about a run or a grid."""
