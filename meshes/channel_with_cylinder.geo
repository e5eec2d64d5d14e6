// A channel of 2.2 m × 0.41 m with a cylinder of radius 0.05 m at (0.2, 0.2): the geometry of Schäfer and Turek (1996).
//   gmsh -2 -format msh41 channel_with_cylinder.geo     about 2 000 vertices
//   gmsh -2 -setnumber h 0.02 …                         another mesh size (far from the cylinder)
SetFactory("OpenCASCADE");
DefineConstant[ h = 0.03 ];

Rectangle(1) = {0, 0, 0, 2.2, 0.41};
Disk(2) = {0.2, 0.2, 0, 0.05};
BooleanDifference(3) = { Surface{1}; Delete; }{ Surface{2}; Delete; };

eps = 1e-6;
inlet()    = Curve In BoundingBox{-eps, -eps, -eps, eps, 0.41 + eps, eps};
outlet()   = Curve In BoundingBox{2.2 - eps, -eps, -eps, 2.2 + eps, 0.41 + eps, eps};
bottom()   = Curve In BoundingBox{-eps, -eps, -eps, 2.2 + eps, eps, eps};
top()      = Curve In BoundingBox{-eps, 0.41 - eps, -eps, 2.2 + eps, 0.41 + eps, eps};
cylinder() = Curve In BoundingBox{0.15 - eps, 0.15 - eps, -eps, 0.25 + eps, 0.25 + eps, eps};

Physical Surface("channel", 1) = {3};
Physical Curve("inlet", 2) = inlet();
Physical Curve("outlet", 3) = outlet();
Physical Curve("walls", 4) = {bottom(), top()};
Physical Curve("cylinder", 5) = cylinder();

// Fine at the cylinder and in its wake, h elsewhere.
Field[1] = Distance;
Field[1].CurvesList = {cylinder()};
Field[1].Sampling = 100;
Field[2] = Threshold;
Field[2].InField = 1;
Field[2].SizeMin = h / 4;
Field[2].SizeMax = h;
Field[2].DistMin = 0.03;
Field[2].DistMax = 0.35;
Background Field = 2;
Mesh.MeshSizeExtendFromBoundary = 0;
Mesh.MeshSizeFromPoints = 0;
