// The vendored library is not checked.
declare const uPlot: any;
export default uPlot;
